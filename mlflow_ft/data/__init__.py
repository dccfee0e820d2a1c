"""From a file or a Hub id to conversations: read, recognise, convert, split, fingerprint."""
