-- From a run of Airflow to its backup: the page's link on task instances and DAG runs.
CREATE INDEX backup_of_run ON backup (run_id);
