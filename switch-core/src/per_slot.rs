//! Lists of what the pipeline knows about the frames of a batch: at most one item for each slot. One worker's alone.

use std::ops::Deref;

use crate::batch::BATCH_FRAMES;

/// At most one item for each slot, in order. A plain array and a length, both initialised: an item is written where it
/// stays, field by field, for the price of one comparison.
#[derive(Clone, Debug)]
pub struct PerSlot<T> {
    items: [T; BATCH_FRAMES],
    len: usize,
}

impl<T: Copy> PerSlot<T> {
    /// Without anything; `filler` lies in the places that are not used.
    #[inline]
    #[must_use]
    pub const fn new(filler: T) -> PerSlot<T> {
        PerSlot { items: [filler; BATCH_FRAMES], len: 0 }
    }

    /// Puts one behind the others.
    ///
    /// # Panics
    /// If there are as many as slots.
    #[inline(always)]
    pub fn push(&mut self, item: T) {
        self.items[self.len] = item;
        self.len += 1;
    }

    /// Keeps those for which `keep` is true, in order.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let mut kept = 0;
        for index in 0..self.len {
            let item = self.items[index];
            if keep(&item) {
                self.items[kept] = item;
                kept += 1;
            }
        }
        self.len = kept;
    }

    /// Forgets all.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

impl<T> Deref for PerSlot<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        &self.items[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_stays_in_order() {
        let mut list = PerSlot::new(0u8);
        (0..BATCH_FRAMES as u8).for_each(|n| list.push(n));
        list.retain(|n| n % 20 == 3);
        assert_eq!(*list, [3, 23, 43, 63]);
        list.push(9);
        assert_eq!(*list, [3, 23, 43, 63, 9]);
        list.clear();
        assert!(list.is_empty());
    }
}
