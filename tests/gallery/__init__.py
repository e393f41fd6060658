"""The pictures and pages of docs/gallery.md, made by real runs: `make gallery`.

    PYTHONPATH=tests:. python -m gallery [WORK [NETWORK]]

WORK keeps what was made, so that a second run goes on; NETWORK saves training one. The notebooks'
outputs are not made here.

What is drawn comes from the scripts that the pages in docs/examples/ show. Released weights are not
at hand where this runs; the networks are small, and their pages say so.
"""
