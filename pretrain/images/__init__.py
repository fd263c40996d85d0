"""Images: data sets, packs of image files, the loader, crops and random views."""
