"""Where tasks, messages and pushes are kept: SQLite for one gateway, PostgreSQL for several replicas.

What is asked is written once, as scripts (`storage.scripts`); the engines only run them.
"""
