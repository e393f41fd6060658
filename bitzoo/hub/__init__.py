"""Publishing to the Hugging Face Hub: a folder whose bytes are proven, a plan, then the upload.

    targets                  what can be published: a released name, a file, a run
    repo_manifest            the files of a repository, by size and SHA-256
    proven_weights           weights, and proofs about exactly their bytes
    repo_files  staging      the folder: weights, config, card, proof, manifest, licence
    remote                   what the Hub has now, and what the token allows
    upload                   plan -> upload -> verify -> tag -> note
    publish                  one model, or each that matches a pattern; resumable

Only the files in `repo_manifest.ALLOWED` are ever uploaded.
"""
