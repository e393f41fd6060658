"""Publishing to the Hugging Face Hub: a folder whose bytes are proven, a plan, then the upload.

    targets                  what may be published: a released name, a file, a run
    repo_manifest            what a repository's files are, by size and SHA-256
    proven_weights           weights, and proofs tied to their bytes
    repo_files  staging      the folder: weights, config, card, proof, manifest, licence
    remote                   what the Hub has now, and who we are there
    upload                   plan -> upload -> verify -> tag -> note
    publish                  one model, or a pattern of names, one after another, resumable

Nothing but the files in `repo_manifest.ALLOWED` ever leaves the folder.
"""
