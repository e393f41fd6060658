"""Every public BiT checkpoint by name, as data, and what is known of any one model. No torch."""
