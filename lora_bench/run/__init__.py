"""From a plan to records: what runs and why, packs trained and saved on the way, and records published. No torch is
imported before the first pack trains."""
