"""Is every VM protected as promised? Pure: values in, findings out.

Freshness, volume, schema, quality: the views that data teams have of their tables, of backups.
"""
