"""Images: the data sets, the loader, the views, and what they are packed in."""
