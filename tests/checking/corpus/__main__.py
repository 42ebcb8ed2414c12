"""Print the table of misses and false alarms."""

from tests.checking.corpus.table import table

print(table())
