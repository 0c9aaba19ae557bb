"""Where Airflow meets the rest: connection types, hooks, params, settings from Variables."""
