"""Check, without Weighbridge, that a receipt line is sealed: python check_proof.py PROOF [ANCHOR].

PROOF is a file of ``billing proof EVENT_ID``; ANCHOR one of ``billing seals export`` that was kept
by somebody else. How lines, trees and seals are hashed: docs/tamper-evidence.md.
"""  # noqa: INP001 - a script

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any


def root_of(proof: dict[str, Any]) -> str | None:
    """The Merkle root that the line and its path lead to (RFC 9162)."""
    text = json.dumps(proof["line"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    node, path = sha256(b"\x00" + text.encode()).digest(), proof["path"]
    index, size, step = proof["index"], proof["seal"]["rows"], 0
    while size > 1:
        if index ^ 1 < size:
            other = bytes.fromhex(path[step]) if step < len(path) else b""
            node = sha256(b"\x01" + (other + node if index & 1 else node + other)).digest()
            step += 1
        index, size = index // 2, (size + 1) // 2
    return node.hex() if step == len(path) and index == 0 else None


def hash_of(seal: dict[str, Any]) -> str:
    """What the next seal is chained to."""
    numbers = [int(seal[name]) for name in ("number", "hour_ms", "sealed_ms", "rows", "adopted")]
    packed = b"".join(number.to_bytes(8, "big") for number in numbers)
    chained = b"\x02" + bytes.fromhex(seal["previous"]) + packed + bytes.fromhex(seal["root"])
    return sha256(chained).hexdigest()


def main(proof_file: str, anchor_file: str = "") -> str:
    """What there is to say; an error where it does not hold."""
    proof = json.loads(Path(proof_file).read_text("utf-8"))
    seal, known = proof["seal"], Path(anchor_file).read_text().split("\n") if anchor_file else []
    if root_of(proof) != seal["root"] or hash_of(seal) != seal["hash"]:
        sys.exit("NOT PROVED: the line is not under that seal")
    if anchor_file and f"{seal['number']} {seal['hash']}" not in known:
        sys.exit("NOT PROVED: the anchor does not have that seal")
    line = json.dumps(proof["line"], indent=2, sort_keys=True)
    told = "which the anchor has" if anchor_file else "to be compared with one kept elsewhere"
    return f"{line}\nproved: it is under seal {seal['number']}, {seal['hash']}, {told}\n"


if __name__ == "__main__":
    sys.stdout.write(main(*sys.argv[1:]))
