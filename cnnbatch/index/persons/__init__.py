"""Who is who in an index: faces grouped into persons, and what people correct of it."""
