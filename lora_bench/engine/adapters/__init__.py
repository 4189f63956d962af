"""What trains: the cells of a pack with their factors and heads, how they start, and how they are saved."""
