# SPDX-License-Identifier: Apache-2.0
"""`cpuinfo dump` and `cpuinfo check`: may a process of that machine run on this one?

The answer is about instructions and the XSAVE area. What the maker, the model and the clock are
is told, but is no reason to say no: a process that asks is not told either.
"""

from ckpt.errors import CkptError, ImageError
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.kernel.cpuinfo_x86_64 import INSTRUCTIONS, VERSION, cpu

_MAKERS = {"GenuineIntel": pb.cpuinfo_x86_entry.INTEL, "AuthenticAMD": pb.cpuinfo_x86_entry.AMD}
_HINT = "the image can only be restored on a CPU that has all that the first one had"


def dump(images_dir: str) -> None:
    """Write cpuinfo.img into the directory, in the place of an older one."""
    with ImageDir.beside(images_dir) as image:
        image.write("cpuinfo", pb.cpuinfo_entry(x86_entry=[_entry()]))


def check(images_dir: str) -> None:
    """Raise CkptError if this CPU lacks something that the one of cpuinfo.img has."""
    with ImageDir.beside(images_dir) as image:
        entries = image.read("cpuinfo").x86_entry
    if len(entries) != 1:
        raise ImageError(f"cpuinfo.img: {len(entries)} x86 CPUs, expected one")
    (theirs,) = entries
    if theirs.capability_ver != VERSION or len(theirs.capability) != len(INSTRUCTIONS):
        raise ImageError(f"cpuinfo.img: unknown version {theirs.capability_ver}")
    _compare(theirs, _entry())


def _entry() -> pb.cpuinfo_x86_entry:
    found = cpu()
    return pb.cpuinfo_x86_entry(
        vendor_id=_MAKERS.get(found.maker, pb.cpuinfo_x86_entry.UNKNOWN),
        cpu_family=found.family,
        model=found.model,
        stepping=found.stepping,
        capability_ver=VERSION,
        capability=found.words,
        model_id=found.name,
        xfeatures_mask=found.features,
        xsave_size=found.size,
        xsave_size_max=found.largest_size,
    )


def _compare(theirs: pb.cpuinfo_x86_entry, ours: pb.cpuinfo_x86_entry) -> None:
    pairs = zip(theirs.capability, ours.capability, INSTRUCTIONS, strict=True)
    for number, (wanted, there, mask) in enumerate(pairs):
        if missing := wanted & mask & ~there:
            raise CkptError(
                f"this CPU lacks instructions that {theirs.model_id} has: "
                f"bits {missing:#x} of word {number}",
                hint=_HINT,
            )
    if missing := theirs.xfeatures_mask & ~ours.xfeatures_mask:
        raise CkptError(
            f"this CPU lacks state that {theirs.model_id} has: XSAVE features {missing:#x}",
            hint=_HINT,
        )
    for name in ("xsave_size", "xsave_size_max"):
        wanted, there = getattr(theirs, name), getattr(ours, name)
        if theirs.HasField(name) and wanted != there:
            raise CkptError(f"{name} is {there} bytes on this CPU, {wanted} on the other")
