"""Pictures of logos and drawings, rendered with variation: what make_logos and make_drawings rest on."""
