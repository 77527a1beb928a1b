"""Writing one planned target into its folder."""
