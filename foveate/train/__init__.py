"""Training of learned methods. Importing this loads nothing heavy; each part is imported where it is used."""
