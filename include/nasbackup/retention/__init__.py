"""Which backups stay and which go: rules, verdicts, and what they would keep over time. All of it pure.

Who asks the catalog is ``steps/retention.py``; how a backup goes is told in ``steps/delete.py``.
"""
