"""The paper's ablations and toy experiments: Figures 2 to 4, Table 4, and the table of all methods."""
