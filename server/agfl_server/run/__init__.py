"""The folder of a run, and what begins, resumes and ends one."""
