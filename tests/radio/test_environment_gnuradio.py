"""GNU Radio, where the machine has it, runs a flowgraph of a script that imports nothing of ours."""

from __future__ import annotations

import json
import subprocess

import pytest

FLOWGRAPH = """
import json
from gnuradio import blocks, gr

top = gr.top_block()
source = blocks.vector_source_f([float(n) for n in range(1000)], False)
scale = blocks.multiply_const_ff(0.5)
sink = blocks.vector_sink_f()
top.connect(source, scale, sink)
top.run()
data = sink.data()
print(json.dumps({"count": len(data), "sum": sum(data), "last": data[-1], "version": gr.version()}))
"""


@pytest.mark.gnuradio
def test_a_flowgraph_runs_in_its_own_process(gnuradio_python, tmp_path):
    script = tmp_path / "flowgraph.py"
    script.write_text(FLOWGRAPH)
    done = subprocess.run(
        [gnuradio_python, str(script)], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["count"], result["sum"], result["last"]) == (1000, 999 * 1000 / 4, 499.5)
    assert tuple(int(part) for part in result["version"].split(".")[:2]) >= (3, 10)
