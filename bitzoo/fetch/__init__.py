"""Files from elsewhere: over HTTP, and from the Hugging Face Hub."""
