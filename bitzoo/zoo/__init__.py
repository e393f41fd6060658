"""From names, files and addresses to models: where weights come from, what is known about them."""
