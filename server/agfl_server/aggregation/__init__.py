"""How a cohort's updates become one sum, and one owner's lie decides none."""
