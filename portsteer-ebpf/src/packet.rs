//! The packet that the kernel hands in.

use aya_ebpf::{helpers::generated::bpf_xdp_get_buff_len, programs::XdpContext};
use portsteer_common::steering::MacAddresses;
use portsteer_ebpf::frame::Buffer;

/// The packet that the kernel hands in.
pub struct Packet(pub XdpContext);

// SAFETY: the kernel keeps the bytes between data and data_end readable while the program runs,
// and the verifier checks each access against data_end.
unsafe impl Buffer for Packet {
    #[inline(always)]
    fn start(&self) -> usize {
        self.0.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.0.data_end()
    }

    #[inline(always)]
    fn total_len(&self) -> u64 {
        // SAFETY: the context is the one that the program was called with.
        unsafe { bpf_xdp_get_buff_len(self.0.ctx) }
    }
}

impl Packet {
    /// The length of the first buffer in bytes.
    #[inline(always)]
    pub fn first_buffer_len(&self) -> u64 {
        (self.0.data_end() - self.0.data()) as u64
    }

    /// Writes the Ethernet header's two addresses, of which these are the bytes. No packet that was
    /// parsed is too short for them, but the verifier wants to see it: `false` then.
    #[inline(always)]
    pub fn set_mac_addresses(&self, addresses: [u32; 3]) -> bool {
        let start = self.0.data();
        if start + size_of::<MacAddresses>() > self.0.data_end() {
            return false;
        }
        let [first, second, third] = addresses;
        let words = start as *mut u32;
        // SAFETY: the bytes lie between data and data_end, where XDP programs may write.
        unsafe {
            words.write_unaligned(first);
            words.add(1).write_unaligned(second);
            words.add(2).write_unaligned(third);
        }
        true
    }
}
