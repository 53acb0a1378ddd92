"""Execute a notebook from top to bottom, as CI does: ``python notebooks/execute.py FILE [--save]``.

A cell that raises fails, and so does one that warns. ``--save`` writes the outputs into the file.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

# What a kernel inherits: most of its time is spent in compiling, which takes half of it so.
BRIEFLY = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"

os.environ["XLA_FLAGS"] = f"{BRIEFLY} {os.environ.get('XLA_FLAGS', '')}"
path = Path(sys.argv[1])
notebook = nbformat.read(path, as_version=4)
strict = nbformat.v4.new_code_cell(
    "import warnings; warnings.simplefilter('error')\n"
    "warnings.filterwarnings('ignore', module='ipykernel')  # its own, when it shuts down"
)
notebook.cells.insert(0, strict)
NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
notebook.cells.pop(0)
if "--save" in sys.argv:
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)
    nbformat.write(notebook, path)
print(f"executed {path.name}: {sum(c.cell_type == 'code' for c in notebook.cells)} cells")
