"""Settings: their schema, and files and flags that give them."""
