"""Every public BiT checkpoint by name, as data, and what is known about any model. No torch."""
