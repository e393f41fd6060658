"""Names, files and addresses to models: where weights come from, and what is known of them."""
