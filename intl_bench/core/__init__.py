"""Ground floor: errors, files, config, seeding, distributed, progress. Imports nothing else of this project."""
