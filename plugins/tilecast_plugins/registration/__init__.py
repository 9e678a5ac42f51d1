"""Registration: where frames really lie, found from what they show where they overlap (README.md here)."""
