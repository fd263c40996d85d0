"""Ground floor: errors, files, config, seeding, distributed, progress. It imports nothing else of this project."""
