"""Runs a page: PYTHONPATH=tests:. python -m docs_world docs/how-to/convert.md [another.md ...].

Every command and snippet of a page of the documentation runs as a reader types it, in page order,
in a folder of its own, in a world that is small and on this machine: `small/sitecustomize.py` says
in what it differs from the real one, `world.py` what stands in for Google's bucket, the Hub, pip
and make, `given.py` which files a page may assume.

`pages.py` has the convention: what in a page is run, what is written as a file, what is shown.
"""
