/* SPDX-License-Identifier: Apache-2.0 */
/* What only this kind of CPU has. */
#include "core.h"

#include <cpuid.h>
#include <sys/ptrace.h>

int64_t core_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
	__cpuid_count(leaf, subleaf, regs[0], regs[1], regs[2], regs[3]);
	return 0;
}

enum { FIRST_SLOT = 12, SLOTS = 3, DESC = 16 };	/* GDT_ENTRY_TLS_MIN; struct user_desc */

int64_t core_get_tls(int32_t tid, uint8_t tls[48])
{
	for (int i = 0; i < SLOTS; i++) {
		int64_t ret = core_ptrace(PTRACE_GET_THREAD_AREA, tid, FIRST_SLOT + i,
					  (uintptr_t)(tls + i * DESC));
		if (ret < 0)
			return ret;
	}
	return 0;
}
