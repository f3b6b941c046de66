"""Networks, data and training recipes of Dekhovich et al. 2024."""
