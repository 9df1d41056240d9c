/* SPDX-License-Identifier: Apache-2.0 */
/* What only the CPU can tell: cpuid. */
#include "core.h"

#include <cpuid.h>

int64_t core_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
	__cpuid_count(leaf, subleaf, regs[0], regs[1], regs[2], regs[3]);
	return 0;
}
