"""The pictures and pages of docs/gallery.md, made by real runs: `make gallery`.

    PYTHONPATH=tests:. python -m gallery docs        # all of it; a quarter of an hour on two cores
    PYTHONPATH=tests:. python -m gallery docs sheets # only the pictures of the examples' drawings

What is drawn comes from the scripts that the pages in docs/examples/ show. Released weights are not
at hand where this runs; the networks are small, and their pages say so.
"""
