"""Fine-tuning by recipe: any network of the zoo on a user's own images.

The package is layered; a module imports only from lines above its own:

    recipe                       what the training loop is told, as data; no NumPy, no torch
    hyperrule    dataset         BiT-HyperRule, the first recipe; which images and labels there are
    inspection                   every problem of a data set, before the first step
    pixels       batches         images decoded once; batches as a pure function of (seed, step)
    memory                       the network in its training form, with less kept for backward
    checkpoints  evaluate        runs that survive a power cut; exact counts of what was right
    report                       report.html and the model card draft
    loop                         one step after the other
    run                          a whole run, from options to a run directory

Importing the package itself loads none of them.
"""
