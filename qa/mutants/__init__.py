"""Protections switched off one at a time, each of which a test must miss: ``make mutants``.

mutant.py      what a mutant is
catalogue/     all of them, by the folder of the package that they change
trial.py       one mutant in a copy of the tree, and the verdict
__main__.py    the whole run
"""
