"""The plugins that come with tilecast; each comes in by the same door as anybody's."""
