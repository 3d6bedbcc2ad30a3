"""Words of the field, pure: credits, periods, ids, clock, errors. Imports nothing of ours."""
