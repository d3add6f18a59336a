"""The web page: what its visitors may ask for, and how it looks."""
