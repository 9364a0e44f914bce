"""Text: from records to segments, from segments to token batches."""
