//! KVM: memory slots, vCPUs, interrupts, boot protocols, CPUID.
