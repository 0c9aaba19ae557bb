"""From a chain on the NAS back to images."""
