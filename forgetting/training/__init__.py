"""The paper's objective, the optimiser steps it is taken over, and the Lightning module and data module around them."""
