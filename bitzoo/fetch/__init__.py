"""Downloads: files over HTTP, and snapshots of Hugging Face Hub repositories."""
