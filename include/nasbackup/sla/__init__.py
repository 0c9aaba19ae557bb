"""Is every VM protected as promised? Pure: values in, findings out.

Freshness, volume, schema, quality: the views that data teams have of their tables, of backups.
"""

from datetime import timedelta

LOOK_EVERY = timedelta(minutes=5)
"""How often nas_sla_watch looks: a whole number of minutes that an hour can be divided into."""
