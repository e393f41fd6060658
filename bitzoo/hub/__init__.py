"""Publishing to the Hugging Face Hub: a folder whose bytes are proven, a plan, then the upload.

    subjects              what may be published: a released name, a file, a run
    records               what a repository's files are, by size and SHA-256; proofs tied to bytes
    contents  preparing   the folder: weights, config, card, proof, manifest, licence
    remote                what the Hub has now, and who we are there
    publish               plan -> ask -> upload -> verify -> tag -> note
    many                  a pattern of names, one after another, resumable

Nothing but the files in `records.ALLOWED` ever leaves the folder.
"""
