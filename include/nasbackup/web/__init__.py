"""The page in Airflow's UI: read-only views of the catalog, and forms that Airflow itself carries out.

It knows no Airflow: ``plugins/nas_backup.py`` mounts it there, and hands in who may see it.
"""
